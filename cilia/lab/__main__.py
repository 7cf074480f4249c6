"""`python -m cilia.lab`: the lab's commands."""

from cilia.lab.commands import main

main()
