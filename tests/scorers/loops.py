"""What SmolLM2-135M-Instruct (Q4_1) answered at temperature 0 with 220 tokens, the first 700 characters
(of the fox all), by prompt.
"""

from __future__ import annotations

#: It goes round in a circle and never leaves it.
LOOPS = {
    "Write a poem about the number 7.": (
        "In the realm of numbers, where mere numbers are but a mere canvas,\nA number's essence is a tapestry "
        "woven with threads of light.\nA number's essence is a tapestry woven with threads of light.\nA "
        "number's essence is a tapestry woven with threads of light.\nA number's essence is a tapestry woven "
        "with threads of light.\nA number's essence is a tapestry woven with threads of light.\nA number's "
        "essence is a tapestry woven with threads of light.\nA number's essence is a tapestry woven with "
        "threads of light.\nA number's essence is a tapestry woven with threads of light.\nA number's essence "
        "is a tapestry woven with threads of light.\nA number's essence is a tapestry woven with threads of "
        "light.\nA number's es"
    ),
    "Sing the alphabet song.": (
        "The alphabet song is a classic children's song that has been performed by a variety of artists. It "
        "is a classic children's song that has been performed by a variety of artists. It is a classic "
        "children's song that has been performed by a variety of artists. It is a classic children's song "
        "that has been performed by a variety of artists. It is a classic children's song that has been "
        "performed by a variety of artists. It is a classic children's song that has been performed by a "
        "variety of artists. It is a classic children's song that has been performed by a variety of "
        "artists. It is a classic children's song that has been performed by a variety of artists. It is a "
        "classic children's song that "
    ),
    "Describe the colour blue in great detail.": (
        "Blue is a fundamental color that represents the sky and ocean. It is a clear, transparent, and "
        "beautiful color that is often associated with the ocean, the sky, and the sea. Blue is also a color "
        "that is often associated with spirituality, spirituality, and the divine.\n\nBlue is also a color "
        "that is often associated with the subconscious, the unconscious, and the subconscious mind. It is a "
        "color that is often associated with the subconscious mind, the unconscious mind, and the "
        "unconscious mind.\n\nBlue is also a color that is often associated with the subconscious mind, the "
        "unconscious mind, and the unconscious mind. It is a color that is often associated with the "
        "subconscious mind, the unconsci"
    ),
}
#: It turns in circles and comes out again.
CIRCLES = {
    "Explain quantum chromodynamics to a child.": (
        "Imagine you have a super cool toy that has a special kind of magic. This toy has particles that can "
        "move through a very strange and strange way. It's like a tiny puzzle with tiny pieces that can move "
        "through the toy. This toy is called a particle, and it's called a quark.\n\nNow, imagine this toy has "
        "a special kind of magic that makes it move through the toy in a very strange and strange way. It's "
        "like the toy has a special kind of magic that makes it move through the toy in a very strange and "
        "strange way.\n\nThis magic is called quantum chromodynamics, and it's a way of talking about the "
        "strange and strange way that particles move through the toy. It's like a special kind of magic "
        "that's differ"
    ),
    "Write a story about a fox that never ends.": (
        "In the heart of the forest, where the land was untamed, there lived a fox named Felix. Felix was a "
        "curious and adventurous fox, always eager to explore the vast expanse of the forest. He had a tail "
        "as long as a rabbit and a heart full of curiosity.\n\nFelix loved to explore the woods, where he "
        "would often venture into the forest, where he would find the most unexpected and beautiful things. "
        "He loved the scent of the forest, the sound of the forest, and the feeling of being in the heart of "
        "the forest.\n\nOne day, Felix stumbled upon a small, glowing flower. He was amazed by the flower's "
        "beauty and decided to take a closer look. He carefully picked the flower and placed it in a special "
        "box, where it was carefully placed in a special box.\n\nThe box contained a small, glowing flower "
        "that was said to be the essence of the forest. The flower was said to be the essence of the forest, "
        "and it was said to be the essence of the forest. The flower was said to be the essence of"
    ),
}
#: It is wrong, but goes straight on.
STRAIGHT = {
    "List every prime number.": (
        "Here is a list of all prime numbers up to 20:\n\n2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, "
        "47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 115, 121, 123, 127, 129, 131, 137, "
        "139, 141, 143, 149, 151, 153, 157, 161, 163, 167, 171,"
    ),
    "What is 17 times 23? Think aloud.": (
        "17 * 23 = 381\n\nThis is a classic example of a mathematical expression that requires a logical and "
        "non-verbal approach. The user is able to think aloud and provide a step-by-step explanation without "
        "using any visual aids or verbal cues. This is a common technique used in mathematics education to "
        "help users understand and process complex mathematical concepts."
    ),
}
