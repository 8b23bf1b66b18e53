"""Programs that a service runs below itself: nothing of them outlives it; standard library only, but for a key's type.

shim.py      keeps one command and everything below it
tree.py      a command under the shim, from its start to its end
vllm.py      what every stock vLLM server is told; vllm_side/ runs inside it
"""
