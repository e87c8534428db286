"""The reference bot, built on the guarded flow: run it with ``lockguard bot run``, or read it as an example.

Any number of bots share the symbols and the signals. Read the modules in this order:

* ``_trader``: carries out one signal under the lease of its symbol. This is all that guarding asks of a bot.
* ``_book``: the decision on each signal, so that a signal delivered twice, or again after its bot was killed,
  is carried out once.
* ``_signals``: the content of a signal. ``_sources`` and ``_stream``: where signals come from.
* ``_worker``: the loops for signals, passes and recovery, and a shutdown in bounded time.
* ``_wiring``: builds and connects the parts. ``_cli``: the options.
"""
