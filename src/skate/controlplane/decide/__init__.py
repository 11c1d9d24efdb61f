"""What to do next, as functions of values. Law: no clock, no I/O, no chance, no logging; the same arguments give the
same plan, and a plan that has been performed leaves nothing to do.

``whole.decide`` looks at everything; ``reconcile`` at one deployment; ``rollout`` says how many may come and go at
once; ``restart`` when a failed one may be tried again; ``status`` and ``publish`` say what users and routers see.
"""
