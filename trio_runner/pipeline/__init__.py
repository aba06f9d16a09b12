"""The tasks between the video and the database, and the channels that join them. It opens no connection."""
