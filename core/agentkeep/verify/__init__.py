"""`agentkeep verify isolation`: sessions that attack each other and their host, and what came of it (EXE-5).

probe/        the agent that does it: standard library only, sent to the deployment as it is
bundle.py     its files, as a bundle or for an image
stage.py      what is made on the deployment for it, and removed
sessions.py   sessions of it, spoken to as users would
suite.py      the order of things
outside.py    attempts that are made from here
report.py     what is told of it
"""
