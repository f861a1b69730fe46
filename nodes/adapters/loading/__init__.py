"""Which file becomes what?

`files` lists and finds them, `model` checks that three belong together, `diffusion_model`, `text_encoder` and
`autoencoder` make a MODEL, a CLIP and a VAE.
"""
