"""The daemon's side of the decoder child, and the messages between the two."""
