"""``lockguard positions fit``: make the table of a bot that was written without lockguard fit for it.

:mod:`_table` reads the catalog, and :mod:`_rows` the rows. :mod:`_columns`, :mod:`_constraints` and
:mod:`_data` decide on statements, :mod:`_plan` puts them in order, :mod:`_script` prints them, and
:mod:`_applying` runs them. :mod:`_looking` compares open rows with an exchange.
"""
