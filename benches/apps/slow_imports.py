"""Take 1.5 s of CPU time to import."""

from time import thread_time

began = thread_time()
while thread_time() < began + 1.5:
    pass
