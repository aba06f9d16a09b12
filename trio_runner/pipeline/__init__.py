"""The tasks between the video and the database, and the channels that join them; opens no connection."""
