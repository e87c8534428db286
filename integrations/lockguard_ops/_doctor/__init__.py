"""``lockguard doctor``: looks at all servers of an installation, and says what to mend and how."""
