"""Pictures of pictures: fonts by the characters that they have, and contact sheets."""
