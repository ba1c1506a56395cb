"""push: an adapter or a merged model as others can use it, in a folder or in a Hub repository.

Not a stage: what is sealed stays as it is, the hand-over is put together beside it.
"""
