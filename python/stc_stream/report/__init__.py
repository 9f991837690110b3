"""What a comparison has to show: a table, a page with pictures, a document for machines.

Each lives in its own module, and nothing is imported here, so that `stc info` needs no transformers
and a bad output folder is refused before torch is loaded.
"""
