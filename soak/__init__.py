"""The soak: all kinds of calls at once for minutes, deaths among them; afterwards nothing is lost, open or larger.

``python -m soak.run`` (``make soak``); what it asserts stands in ``judge``.
"""
