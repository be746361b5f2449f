"""What other packages' registries must know of our layers, by package; docs/tools.md says when.

Nothing here is imported by `import fastrnn`: importing a module of it registers.
"""
