"""Responses that put the checkers of IFEval to the test: edges written by hand, and draws without end.

`edges()` gives at least forty of each kind; `draw(kind, random)` makes one more. Used by `ifeval.py`.
"""

# Texts that any checker should survive.
COMMON = [
    "", " \n\t ", "a", "A", ".", "*", "Hello, world.", "ONE TWO THREE", "one two three", "One\n\nTwo\n\nThree",
    "First line\nmiddle line\nlast line", "* a\n* b\n- c", "**bold** and *plain*", "Sure! Here it is:\n\nThe answer, in short.\n\nHope it helps!",
    "\u00a0non-breaking\u2003em space\u3000ideographic", "Tab\tand\x0bvertical\x0cfeed\x1cfile\x85next",
    "\u200bzero width\u200b", "ünïcödé ÀÉÎ ß ẞ ǅ ŉ", "İstanbul ılık I i", "ὈΔΥΣΣΕΎΣ Οδυσσεύς", "नमस्ते दुनिया, यह हिन्दी है।", "これは日本語です。二つ目の文。",
    "مرحبا، كيف حالك؟", "Line one\r\nLine two\r\n", "👍🏽 emoji 🇩🇪 text", "e\u0301 decomposed, é composed", "\ufeffbyte order mark",
]

SENTENCES = [
    "Dr. Smith went to Washington. He arrived at 5 p.m. on Monday. It was late.", "What?! No... Yes!!! Really?", "One. Two. Three.",
    "1. First item\n2. Second item\n3. Third item", "He said \"Stop.\" She did. (They left.) Good.", "The U.S. is big. The U.K. is not. E.g. this one.",
    "It costs $3.50. Mr. A. B. Jones paid. etc.", "No end mark", "Ends with ellipsis... and goes on. Then ends...", "e.g. i.e. vs. Inc. Co. Ltd. Corp.",
    "A.M. or P.M.? I don't know. J. S. Bach wrote it.", "Visit www.example.com. Then mail me@example.org. Thanks!", "Hi!How are you?Fine.", "“Quoted.” ‘Single.’ «Guillemets.» Done.",
    "Bullet:\n- one.\n- two!\n- three?\n", "A sentence.\n\nAnother one.\n\n\nA third", "Sentence one.Sentence two. sentence three.", "3.14 is pi. 2.71 is e. v1.2.3 is a version.",
    "He (really.) left. [Note.] {Brace.} 'Quote.' \"Double.\"", "Wait . . . what ? ! ok .", "-- Dashes. -- More dashes.--Stuck.", "Nov. 24 was cold. Gen. Lee, Sen. Doe and Rep. Roe came. Prof. X. left.",
    "No. 5 is alive. No. I said no. Fig. 3 shows it.", "!!!", "?. !. ..", "A! B? C. D", "The end.)", "Ok.) \" ' ] } Next. Word", "x.\u00a0y. Z", "Sent one.\x0bSent two.", "the company inc. The next",
]

HIGHLIGHTS = ["*a*", "**a**", "***a***", "* *", "****", "** **", "*a* *b*", "*a*b*", "*a\nb*", "**a* b**", "* item *one*\n* item", "*a**b*", "**a** **b** *c*", "***", "*x", "x*", "**\u00a0**", "*\t*", "_a_ *b_*", "**a***b*", "*é* **ñ**"]
BULLETS = ["* one\n* two\n* three", "- one\n- two", "*one\n*two", "** bold **\n* one", "  * indented\n\t* tab", "\n\n* after blank", "--- \n* x", "-", "*", "* ", "* a\n\n\n- b", "text - not\n- yes", "*\n* x", "**Title**\n- a\n- b\n\n***\n",
           "– en dash\n• dot\n- hyphen", "1. one\n2. two", "* a\r\n* b", "* a\u2028* b", "\x0b* a\n\x0c- b", "* one\n  - two\n    * three", "*\u00a0x\n-y"]
JSON = ['{"a": 1}', '```json\n{"a": [1, 2, {"b": null}]}\n```', "```\n[]\n```", "```JSON\n{}\n```", "```Json {}```", "```json {} ``` trailing", "{'a': 1}", "{\"a\": 1,}", "NaN", "[NaN, -Infinity]", "1", "01", "\"s\"", "\"a\nb\"", "\"\\ud800\"", "\"\\x\"",
        "{\"a\": 1} {\"b\": 2}", "Here is the JSON: {}", "true", "True", "[1, 2", "-", "-0.5e-3", "1.", ".5", "\ufeff{}", "{\"a\": \"\\u00e9\", \"a\": 2}", "``````", "```json```", "```json\n```", "{\"a\":\t1\r\n}", "{\"a\": 1}\u00a0", "[\"\x1f\"]", "[\"\x7f\"]",
        "  [1,2,3]  ", "*{\"a\": 1}*", "Sure!\n{\"a\": 1}", "{\"a\": 1}\nDone.", "Sure!\n```json\n{\"a\": 1}\n```\nDone.", "{\"a\": *1*}", "1E400", "[1 2]", "{1: 2}", "{\"a\"}", "null\n", "9" * 30, "[[[[[[[]]]]]]]", "{\"\": {}}", "```python\n{}\n```", "````{}````"]
TITLES = ["<<title>>", "<< >>", "<<>>", "<<<title>>>", "<<a>> <<b>>", "<<a\nb>>", "<title>", "<<title", "title>>", "<< <> >>", "<<<<>>>>", "Intro\n<<poem of joy>>\nText", "<<*>>", "< <a>>", "<<a> >", "<<\u00a0>>", "<<\u200b>>", "<<a>>b>>", "<<><>>", "<<-->>", "«title»", "<<é>>", "<< >> <<b>>"]
TWO = ["a******b", "a******a", "a ******\nb", "******a******b******", "a******b******c", "a************b", "a*****b", "a*******b", "******", "a******", "a ****** a\n", "one\n******\ntwo", "******\n******a******b", "a****** ", "a\n\n******\n\nb\n\n******\n", "A******a", "a******\u00a0b\u00a0", "x\na******b\ny", "a ** **** b", "a******b*",
       "Response 1: yes\n******\nResponse 2: no", "a******b\nlast", "first\na******b"]
QUOTES = ['"a"', '"', '""', ' "a" ', "“a”", '"a', 'a"', "'a'", '"a"\nb', 'x\n"a"', 'x\n"a"\ny', '*"a"*', '"a" and "b"', '"\n"', '\u00a0"a"\u00a0', '"a"."', '"""', '"é"', '\\"a\\"', '" "', '"a"\u200b', '"a"\x1c', '"A long answer, with commas.\n\nAnd paragraphs."']
COMMAS = ["a, b", "a b", "a، b", "a， b", "a; b", "1,000", "first, line\nsecond", "first\nsecond, line", "first,\nsecond\nthird,", "a\u201ab", "*,*", ",", "no comma\nhere", "a\ufe50b", "a､b", "x,\ny", "«a» b", "one,two", "no\ncomma\nat\nall", "a\n,\nb", ",\nx\n,"]
CASES = ["ALL CAPITALS IN ENGLISH, PLEASE.", "all small letters in english, please.", "Mixed Case", "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG", "the quick brown fox jumps over the lazy dog", "DER SCHNELLE BRAUNE FUCHS", "der schnelle braune fuchs springt über den faulen hund", "123", "!!!", "ÀÉÎ", "ǅ", "ªº", "Ⅷ", "ⅷ",
         "HELLO ß", "ẞ ALL", "I AM 3 YEARS OLD", "i am 3 years old", "Title line\nall small after that, and it is english", "all small here\nLast Line", "HEADING\nTHE REST IS WRITTEN IN CAPITALS AS WELL\nfooter", "नमस्ते", "NASA WILL LAUNCH A ROCKET TO THE MOON NEXT YEAR", "my name is bond and i like martinis", "WRITE ONE: this", "HTTP://EXAMPLE.COM IS A SITE", "see http://example.com/Path for more of the same thing", "ʰ", "A", "a", "Ⓐ", "ⓐ", "𝐀𝐁", "𝐚𝐛", "*ALL BOLD TEXT IN ENGLISH LANGUAGE*"]
LANGUAGES = ["The weather is nice today and we will go for a walk.", "Das Wetter ist heute schön und wir gehen spazieren.", "El tiempo es bueno hoy y vamos a caminar por el parque.", "Il fait beau aujourd'hui et nous allons nous promener.", "Il tempo è bello oggi e andiamo a fare una passeggiata.",
             "Погода сегодня хорошая, и мы пойдём гулять.", "आज मौसम अच्छा है और हम टहलने जाएंगे।", "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ ਅਤੇ ਅਸੀਂ ਸੈਰ ਕਰਨ ਜਾਵਾਂਗੇ।", "今日は天気がいいので散歩に行きます。", "今天天气很好，我们去散步。", "오늘은 날씨가 좋아서 산책하러 갑니다.", "الطقس جميل اليوم وسنذهب للمشي.", "Hôm nay thời tiết đẹp và chúng tôi sẽ đi dạo.", "Ho\u0302m nay tho\u031b\u0300i tie\u0302\u0301t de\u0323p", "Pogoda jest dziś ładna i idziemy na spacer.",
             "Hava bugün güzel ve yürüyüşe çıkacağız.", "Vremea este frumoasă astăzi și mergem la plimbare, țară.", "امروز هوا خوب است و ما به پیاده‌روی می‌رویم", "Leo hali ya hewa ni nzuri na tutakwenda kutembea.", "ఈరోజు వాతావరణం బాగుంది.", "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ.", "இன்று வானிலை நன்றாக உள்ளது.", "आज हवामान छान आहे आणि आपण फिरायला जाणार आहोत.", "Днес времето е хубаво и ще се разходим.", "Tänään sää on kaunis ja menemme kävelylle.", "วันนี้อากาศดี", "123 456", "ok", "http://example.com me@example.org", "Hello! Das ist ein Test. C'est la vie.", "Sure, here it is:\nDas Wetter ist heute schön und wir gehen spazieren.", "ⓐⓑⓒ", "NASA", "Καλημέρα, ο καιρός είναι καλός.", "שלום, מזג האוויר נחמד היום.", "Dagens väder är fint och vi ska ta en promenad.", "O tempo está bom hoje e vamos passear no parque."]
PARAGRAPHS = ["a***b", "a\n***\nb\n***\nc", "***a***b", "a***b***", "***", "a", "a *** *** b", "a\n\n***\n\nb", "a******b", "a****b", "*** a *** b ***", "a***\u00a0***b", "a\n* * *\nb", "**a***b", "one\n***\ntwo\n***", "a***b\n***\nc***d", "\n***\n", "a ***b*** c", "***\n***", "x\n\na***b", "a\n***\nb\n***\nc\n***\nd\n***\ne"]
NTH = ["One word\n\ntwo words\n\nthree", "\n\nOne\n\nTwo", "'One' word\n\n\"Two\" words", "One.Two\n\nThree", "ONE\n\nTWO!\n\nThree?", "One\n\n\n\nTwo\n\nThree", "one", "\"'one\n\n'\"two", "One\nstill one\n\nTwo", "One\n \nTwo\n\nThree", "one, two\n\none\n\none", "*One*\n\n*Two*", "Title\n\nOne\n\nTwo", "one\n\ntwo\n\n", " one\n\n two\n\n three", "(one)\n\none)", "one-two\n\ntwo-one", "Ones\n\nTwos", "ΣΊΣΥΦΟΣ\n\nσίσυφοσ", "one\u00a0x\n\ntwo\u2003y", "one\r\n\r\ntwo", "'\"one\"'\n\n''two", "...\n\n!two", "\n\none\n\n\n\n\ntwo\n\nthree"]
PLACEHOLDERS = ["[a] [b] [c]", "[]", "[a\nb]", "[[a]]", "[a", "a]", "[a][b]", "[a] ] [b]", "(a) {b}", "[link](url) and [x]", "[*a*]", "[1] [2] [3] [4]", "[ ]", "\\[a\\]", "[a]\n[b]\n[c]", "【a】", "[a[b]c]", "][", "[é] [ñ]", "Dear [name],\nyour order [order number] ships to [address].\nBye, [me]", "[x]"]
POSTSCRIPT = ["Text.\nP.S. more", "text p.s. more", "P. S. more", "PS more", "P.S more", "P.P.S more", "P.P.S. more", "p. p. s", "P.S.\n", "P.P.S", "p.ps", "ps.", "P.\nS. x", "p.\u00a0s. x", "Text\n\n\nP.S.: x", "P.S. one\nP.P.S. two", "XP.S.", "P.S.S.", "P..S.", "pxpxs", "ｐ.s.", "P.S. only\nlast", "x\nP.S. middle\ny", "p.p.s.", "P.P. S", "pxs", "P.P.Sure", "Post Scriptum: x", "p.\tp.\ts"]
ENDS = ["Any other questions?", "any other questions?", "Text. Any other questions?", "Any other questions? No.", "Any other questions?\n", "\"Any other questions?\"", "\"Text. Any other questions?\" ", "Any other questions?*", "*Any other questions?*", "Any other questions?\nBye.", "Any  other questions?", "Any other questions", "ANY OTHER QUESTIONS?\"\"", "Any other questions? \"", "Any other questions?”", "The end", "the end.", "THE END\u00a0", "İ The End", "Peace!", "peace!\n*", "x\nThe end\ny"]
CONSTRAINED = ["My answer is yes.", "My answer is no.", "My answer is maybe.", "my answer is yes.", "My answer is yes", "I think my answer is yes.", "Hm. My answer is no. Because.", "My  answer is yes.", "My answer\nis yes.", "*My answer is yes.*", "My answer is *yes*.", "My answer is: yes.", "MY ANSWER IS YES.", "Yes.", "My answer is yes.My answer is no.", "“My answer is maybe.”", "My answer is yes.\u00a0", "My answer is yes!", "Sure\nMy answer is maybe.\nBye", "My answer is perhaps.", "\u200bMy answer is no.", "My answer is not."]
CAPITALS = ["NASA AND ESA", "I AM", "I'm OK", "A B C", "U.S. and U.K.", "HELLO-WORLD", "HELLO—WORLD", "IT'S FINE", "I CAN'T", "CANNOT", "WANNA GO", "GONNA GIMME", "“QUOTED” ‘SO’", "\"QUOTED\"", "3D 4K A1", "ÀÉÎ ÑANDÚ", "ABC123 123", "*BOLD* **ALSO**", "A.B.C. D.", "Mr. T. IS HERE.", "OK?! NO... YES", "(ONE) [TWO] {THREE} <FOUR>", "A/B", "A&B", "A@B.COM", "#TAG $USD 5%", "D'YE MORE'N 'TIS 'TWAS", "DON'T WON'T SHE'LL THEY'VE", "ONE,TWO:THREE;FOUR", "A,B 1,000", "X--Y", "`CODE` ``MORE``", "''TWO''", "THE END.", "THE END.)", "ONE TWO\nTHREE FOUR\n\nFIVE", "Ⅷ ⅷ Ⓐ", "НАСА МИР", "ΑΒΓ", "I", "'S 'M 'D", "DOGS' CATS'", "L'ÉTÉ D'OR", "LET'S GO. I'D SAY 'NO' TO 'EM", "DR. WHO VS. MR. X. THEY MET.", "A. B. C.", "S'POSE 'CAUSE", "N.A.S.A", "YES!NO?MAYBE"]
KEYWORD_TEXTS = ["cat", "Cat CAT cAt", "concatenate", "cats and dogs", "dog", "the cat, the dog", "c.t", "cat\ndog", "a+b", "aab", "ıt is IT", "İT it", "straße STRASSE", "ſtop STOP", "K k \u212a", "naïve NAÏVE", "Σίσυφος ΣΊΣΥΦΟΣ", "foo_cat", "cat's", "cat-dog", "catdog dogcat", "end of cat.", "über-Cat", "हिन्दी", "日本語", "co-operate", "(cat)", "[cat]", "cat*dog", "cat\u00a0dog", "c at", "\\cat", "first cat\nlast dog", "dog\ncat\ndog", "*c*a*t*", "1 cat 2 cats", "caté cat_ cat1", "C++ and c#", "e\u0301cat", "kitten"]
KEYWORDS = ["cat", "dog", "c.t", "a+b", "İt", "ıt", "it", "straße", "stop", "k", "naïve", "σίσυφος", r"\bcat\b", "cat|dog", "(cat)", "(c)(a)t", "[cat]", r"cat\.", "हिन्दी", "日本語", "co-operate", "cat's", "c++", "^cat", "cat$", "", ".", r"\w+", "ca?t", "(?P<x>c)at", "CAT", "e", " cat ", "the"]
SECTION_TEXTS = ["Section 1\na\nSection 2\nb", "SECTION 1 a SECTION 2 b", "Section1 Section2", "section 1", "Section one", "Section  1", "Section 1 Section 2 Section 3", "PARAGRAPH 1\nx\nPARAGRAPH 2", "Section 12", "Section 1.1 Section 1.2", "Sections 1", "Subsection 3", "Section\n1", "Section\u00a01", "Section ٣", "Section ²", "*Section 1*\n*Section 2*", "Section 1:", "Intro\nSection 1\nEnd", "Day 1\nDay 2\nDay 3", "Section 1Section 2", "Section A"]
REPEATS = ["Write a poem. It goes", "write a POEM. it goes", " Write a poem.", "\"Write a poem.\"", "Write a poem", "Sure! Write a poem.", "Sure!\nWrite a poem.\nRoses are red.", "*Write a poem.* Yes", "Write  a poem.", "Write a poem.Write", "WRITE A POEM.", "Write\u00a0a poem.", "\u00a0Write a poem.", "STRASSE straße", "Straße", "İ x", "i̇ x", "Write a *poem*.", "Write a poem.\n\nanswer", "Οδυσσεύς ΟΔΥΣΣΕΎΣ", "\ufeffWrite a poem."]
WORDS = ["one two three", "don't stop", "a-b c_d", "3.14 1,000", "été naïve", "हिन्दी में लिखो", "日本語 テスト", "one\ntwo\nthree\nfour five", "* * *", "** one **", "x²", "Ⅷ ½", "_ __", "e\u0301te\u0301", "👍 up", "a.b.c", "hello\u200bworld", "ǅ ß", "one,two;three", "-- - -", "٣ three", "ภาษาไทย", "Title here\none two three\nthe end", "½cup", "ⓐⓑ"]
LETTERS = ["banana", "BANANA", "bAnAnA split", "İi ıI", "ß SS ẞ", "e\u0301 é", "###", "!!", "a*a*a", "a\na\na", "Σ σ ς", "K k \u212a", "ſs", "", "zzz", "q", "The quick brown fox", "aaaaaaaaaa", "first a\nnone\nlast a", "ａa", "Ａ", "ⓐ a"]


def numbers(name, values, relation=None):
    """Keyword arguments of counts."""
    if relation is None:
        return [{name: value} for value in values]
    return [{name: value, relation: way} for value in values for way in ("at least", "less than")]


def kinds():
    """Of each kind: arguments worth trying, and texts of its own."""
    return {
        "keywords:existence": ([{"keywords": [a, b]} for a, b in zip(KEYWORDS, KEYWORDS[1:] + KEYWORDS[:1]) if "c++" not in (a, b)] + [{"keywords": [word]} for word in KEYWORDS if word != "c++"], KEYWORD_TEXTS),
        "keywords:frequency": ([{"keyword": word, "frequency": n, "relation": way} for word in KEYWORDS if word not in ("", "c++") for n in (1, 2, 3) for way in ("at least", "less than")], KEYWORD_TEXTS),
        "keywords:forbidden_words": ([{"forbidden_words": [word]} for word in KEYWORDS if word != "c++"] + [{"forbidden_words": ["cat", "dog", "cat"]}, {"forbidden_words": ["dogs", "हिन", "e"]}], KEYWORD_TEXTS),
        "keywords:letter_frequency": ([{"letter": letter, "let_frequency": n, "let_relation": way} for letter in ["a", "B", "i", "İ", "ß", "#", "!", " ", "s", "σ", "*", "é", "z", "k"] for n in (0, 1, 2, 3) for way in ("at least", "less than")], LETTERS),
        "language:response_language": ([{"language": code} for code in ["en", "de", "es", "fr", "it", "ru", "hi", "pa", "ja", "ko", "ar", "vi", "pl", "pt", "fa", "sw", "te", "kn", "ta", "mr", "bg", "fi", "th", "ne", "gu", "bn", "ur", "he", "uk", "ml"]], LANGUAGES),
        "length_constraints:number_sentences": (numbers("num_sentences", range(0, 8), "relation"), SENTENCES),
        "length_constraints:number_paragraphs": (numbers("num_paragraphs", range(0, 6)), PARAGRAPHS),
        "length_constraints:number_words": (numbers("num_words", range(0, 9), "relation"), WORDS),
        "length_constraints:nth_paragraph_first_word": ([{"num_paragraphs": n, "nth_paragraph": nth, "first_word": word} for n in (1, 2, 3) for nth in range(1, n + 1) for word in ("one", "Two", "three", "σίσυφος", "*one*", "")], NTH),
        "detectable_content:number_placeholders": (numbers("num_placeholders", range(0, 6)), PLACEHOLDERS),
        "detectable_content:postscript": ([{"postscript_marker": marker} for marker in ["P.S.", "P.P.S", "P.P.S.", " P.S. ", "PS", "Post Scriptum:", "p.s", "P.P"]], POSTSCRIPT),
        "detectable_format:number_bullet_lists": (numbers("num_bullets", range(0, 5)), BULLETS),
        "detectable_format:constrained_response": ([{}], CONSTRAINED),
        "detectable_format:number_highlighted_sections": (numbers("num_highlights", range(0, 6)), HIGHLIGHTS),
        "detectable_format:multiple_sections": ([{"section_spliter": word, "num_sections": n} for word in ["Section", "SECTION", "PARAGRAPH", " Day ", "(Sec)tion", "Section|SECTION", "S.ction", ""] for n in (0, 1, 2, 3)], SECTION_TEXTS),
        "detectable_format:json_format": ([{}], JSON),
        "detectable_format:title": ([{}], TITLES),
        "combination:two_responses": ([{}], TWO),
        "combination:repeat_prompt": ([{"prompt_to_repeat": text} for text in ["Write a poem.", " write a Poem.\n", "Straße", "İ", "ΟΔΥΣΣΕΎΣ", "Οδυσσεύς"]], REPEATS),
        "startend:end_checker": ([{"end_phrase": phrase} for phrase in ["Any other questions?", " the End ", "THE END.", "Peace!", "İ", "", "\"", "questions?\""]], ENDS),
        "change_case:capital_word_frequency": (numbers("capital_frequency", [-1, 0, 1, 2, 3, 4, 6], "capital_relation"), CAPITALS),
        "change_case:english_capital": ([{}], CASES),
        "change_case:english_lowercase": ([{}], CASES),
        "punctuation:no_comma": ([{}], COMMAS),
        "startend:quotation": ([{}], QUOTES),
    }



def edges():
    """(kind, response, arguments to choose from): the kind's own texts, then those of all kinds."""
    for kind, (arguments, texts) in kinds().items():
        for place, text in enumerate(texts + COMMON):
            first = place * 7 % len(arguments)
            yield kind, text, arguments[first:] + arguments[:first]


JOINTS = [" ", " ", " ", "\n", "\n\n", "", ", ", ". ", "\n* ", "\n- ", " *", "* ", "\t", "\u00a0", "\r\n", "... ", "! ", "? ", "\n***\n", "\" ", " \"", " (", ") ", "\u2003", "\n \n"]


def draw(kind, random):
    """One more (kwargs, response) of a kind."""
    arguments, texts = kinds()[kind]
    pieces = []
    for _ in range(random.randrange(1, 7)):
        pool = random.choice([texts, texts, texts, COMMON, WORDS, SENTENCES, CAPITALS, LANGUAGES, KEYWORD_TEXTS])
        piece = random.choice(pool)
        if random.random() < 0.2:
            piece = piece.upper() if random.random() < 0.5 else piece.lower()
        if random.random() < 0.15 and piece:
            cut = random.randrange(len(piece))
            piece = piece[cut:] if random.random() < 0.5 else piece[:cut]
        pieces += [piece, random.choice(JOINTS)]
    if random.random() < 0.6:
        pieces.pop()
    return random.choice(arguments), "".join(pieces)
