"""What each way to lock does when its holder is stopped, killed or cut off.

The command is ``lockguard bench --stopped-holder``.
"""
