"""kill -9 of every part at every state of a swap, on the real stack (`python -m bench.swapkills`)."""
