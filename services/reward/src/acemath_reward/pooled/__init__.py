"""Checkpoints that one device does not hold: computed by stock vLLM servers below this service, over HTTP.

command.py   what a server is told
client.py    what is asked of it; blocks
server.py    one server, from its start to its end
whole.py     candidates that are scored as a whole, also live ones
model.py     all of it behind the port of the engine
"""
