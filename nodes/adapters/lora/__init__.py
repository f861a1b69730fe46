"""Where does a LoRA belong?"""
