"""An agent that plants secrets in its session and tries to reach what is not its session's.

One list of attacks for every driver and deployment: `files`, `processes`, `memory`, `network`, `power`, `containers`,
`endpoint`, each with the functions marked `@attack`; and `exhaustion`, whose functions must meet a limit. It runs where
nothing is installed, so it is standard library only, Python 3.10 or newer.
"""
