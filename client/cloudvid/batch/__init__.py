"""A file of scenes becomes a folder of pictures and clips, resumable at any moment."""
