"""The engine: packed forward passes of one-label Llama- and Qwen2-type classifiers; the only part that knows torch.

config.py    what of `config.json` is implemented; everything else is refused
device.py    device, number format and threads
weights.py   safetensors to tensors, names and shapes checked
packing.py   prompt groups to one packed batch
layers.py    norm, rotary embedding, linear maps on fixed tiles, attention by segment
model.py     the forward pass and the score head
"""
