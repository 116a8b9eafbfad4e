"""Offline measurements of the engine itself, without HTTP; `server.bench` is their command line."""
