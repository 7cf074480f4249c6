"""The demo: the main job in eleven steps, each checked against what it must show.

Belongs here: the story (`story`), what the policies must come to (`expectations`), how it is told (`stage`),
and what the machine looked like before (`traces`). Does not belong here: anything a lab needs without the
demo. Talks to: the lab, the agent's REST API, and kubectl and `cilia observe` as a user would.
"""
