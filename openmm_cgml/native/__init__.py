"""An OpenMM force in C++ that calls a network compiled ahead of time.

``force.create_force`` makes it. The first use on a machine compiles the force (``library``), the
first use of a model compiles its network (``package``); both are kept (``cache``).
"""
