"""Images that are searched: indexes built and asked, near duplicates found.

infer.py       what infer.py does: a dump, an index, an answer or an export
search.py      search indexes, built and asked
threshold.py   when an answer is "none"
lock.py        who may write an index: one command at a time
update.py      images added to indexes, and removed from them
page.py        answers as one page
open_index.py  an index with its model, for programs
duplicates.py  near duplicates among dumped embeddings
"""
