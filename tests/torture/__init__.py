"""The standing attack on the project: everything that was once tried by hand, to be tried again by ``make torture``.

A module an attack, each with a ``TITLE`` and ``cases(place, random)``, which gives its cases in an order that ``random`` decides; ``campaign``
tries them, remembers what came of each, and writes the record that the book shows.
"""
