"""A static site to look at the latents of one run: `python -m scaling.view` writes it.

activity.py finds what the latents do on text, decoder.py what their decoder rows say, known.py what
evaluations kept of them; site.py writes all of it as files that a browser opens without a server.
"""
