"""How tokens are chosen: what a client may ask for, and the choice itself."""
