"""A file of scenes becomes a folder of pictures and clips, resumable at any moment.

`scenes` reads the input, `progress` says what each scene still needs, `engine` decides what runs next, `runner` sends
it, and `store` keeps the files and the manifest. What a user sees of it are the `events` and the `gallery`. Nothing
here prints, and nothing here builds an HTTP request.
"""
