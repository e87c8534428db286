"""A bot on the guarded flow, to run as it is or to read: ``lockguard bot run``.

Any number of them share the symbols and the signals. Read it in this order:

* ``trader``: what one signal does, under the lease of its symbol. This is what guarding comes to.
* ``book``: what was decided about each signal, so that one that comes twice, or comes again after its bot was
  killed, is carried out once.
* ``signals``: what a signal says. ``sources`` and ``stream``: where signals come from.
* ``worker``: the loops around it: signals, passes, recovery, and an end in bounded time.
* ``wiring``: how the parts are made. ``command``: the options.
"""
