"""The engine: packed forward passes of one-label Llama- and Qwen2-type classifiers; the only part that knows torch.

config.py     what of `config.json` is implemented; everything else is refused
device.py     device, number format, threads and the constants of the schedule
weights.py    safetensors to tensors, names and shapes checked
cells.py      the schedule: sequences in cells of a fixed number of tokens
live.py       candidates that are still being written; budget.py the bytes that they may hold
packing.py    cells to one packed pass
tiling.py     how the rows of a pass are cut into products, tried at load
linear.py     linear maps on tiles of a fixed number of rows, prepacked
elementwise.py  what lies between products; compiled.py, kernels.py and lanes.py the same in machine code
attention.py  one call for each cell; shares.py divides them among threads; varlen.py all in one call, on GPUs
layer.py      a decoder layer, and the last one, which computes only what is asked
head.py       a last row to a score
crew.py       threads that share the tiles and cells of a pass
peak.py       what matrix products alone would allow
model.py      the forward pass
"""
