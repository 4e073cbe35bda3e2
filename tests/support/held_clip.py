"""A clip that takes long enough to be cancelled, requested in a thread of its own."""

import threading
import time

from cloudvid.endpoints import errors
from cloudvid_schema.protocol import Progress
from support import stages

_LONG = {"num_inference_steps": 500, "num_frames": 4, "width": 128, "height": 128, "seed": 1}


class HeldClip:
    """Returns once the clip has begun; one that has to wait for another job is not waited for (`begins`)."""

    def __init__(self, client, job, begins=True):
        self.begun = threading.Event()
        self.ended_at = 0.0
        self._error = None
        picture = stages.picture((128, 128))

        def take(event):
            if isinstance(event, Progress):
                self.begun.set()

        def make():
            try:
                client.image_to_video(picture, **_LONG, job=job, on_event=take)
            except errors.StageError as error:
                self._error, self.ended_at = error, time.monotonic()

        self._thread = threading.Thread(target=make)
        self._thread.start()
        assert not begins or self.begun.wait(60)

    def end(self):
        """The error that the request ended with."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._error
