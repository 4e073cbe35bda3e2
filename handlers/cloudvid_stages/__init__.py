"""The two stages on torch and diffusers. Nothing here knows a server."""
