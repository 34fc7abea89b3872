from agentkeep.cli.main import main

main()
