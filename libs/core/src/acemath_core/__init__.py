"""What every AceMath process agrees on: pure data and functions.

This distribution imports nothing of ours and no server, client or tensor library.
"""
