"""Where training vectors come from: planted data, stores on disk, and harvesting them from a model.

Other packages call `scaling.activations.build` (describe, prepare, open_source) and hold what it
returns by the protocol of `scaling.activations.source`.
"""
