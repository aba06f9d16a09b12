"""The decoder child: a video file in, JPEG frames out; neither Trio nor a network library."""
