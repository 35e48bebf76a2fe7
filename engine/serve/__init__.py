"""A page and a JSON endpoint that search an index by a photo or by words.

__main__.py    the command: flags, the port that is taken, the end
app.py         what is answered at which address
searcher.py    the index and its model: answers and thumbnails
decoder.py     images of strangers, decoded in a process of its own
guard.py       who may ask: loopback or a token; what a browser may load
connection.py  connections that end in time
"""
