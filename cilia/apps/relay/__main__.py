"""`python -m cilia.apps.relay`: the same as hubble-relay."""

from cilia.apps.relay import main

main()
