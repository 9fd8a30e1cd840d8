"""Running a model and looking at it without changing it: what export, audit, certificates and attacks share.

It lies below these rooms and imports none of them.
"""
