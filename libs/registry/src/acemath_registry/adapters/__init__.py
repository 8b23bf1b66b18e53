"""Versions that are stored as LoRA matrices on another version, and are served merged.

The manifest of such a version is that of the merged model: its name, digests, facts, canary and signature are those of
any version. What is stored is thin: the small files and the adapter. Publishing merges once, to know the digests; each
replica merges again when it makes its private copy, which is then verified bit by bit like any other. So the merge has
to give the same bits on every machine: `arithmetic`.
"""
