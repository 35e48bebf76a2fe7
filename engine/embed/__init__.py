"""Models ready for use, the embeddings of image sets, and what is written of them."""
