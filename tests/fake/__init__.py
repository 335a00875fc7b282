"""A strict SSH server in this process, with faults; and the same tests against real ones."""
