"""`python -m cilia.apps.agent`: the same as cilia-agent."""

from cilia.apps.agent.main import main

main()
