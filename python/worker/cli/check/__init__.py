"""``sanic-worker check``: starts an application once, in processes of its own, and reports how that went.

The command starts itself again as a throw-away main process. That one runs Sanic's command as ever, with
three changes: its sockets are stand-ins that cannot listen, its manager starts one worker and nothing else,
and the worker stops as soon as it has answered the requests that the user has given.
"""
