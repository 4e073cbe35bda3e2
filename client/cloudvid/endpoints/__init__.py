"""One request to one endpoint: how it is sent, what the answer means, what is raised if it fails.

`connection` and `credentials` know HTTP and keys, `answers` turns a response into a file or an error, and `errors` and
`failures` say what a caller can do next. Nothing here knows about scenes, batches or workers.
"""
