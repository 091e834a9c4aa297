"""Jobs: recipes that run by themselves. What is due (`ticks`), who does it (`book`), how a tick is run (`night`).

A tick's identity is the job's name and its scheduled time in UTC. Whoever calls, and however often, the same tick is the
same run: it is claimed in the ledger, goes on where it stopped, and is never done a second time.
"""
