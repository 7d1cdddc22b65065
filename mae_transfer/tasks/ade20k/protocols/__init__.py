"""What is done with an encoder to segment images, a file each."""
