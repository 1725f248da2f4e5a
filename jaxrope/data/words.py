"""The words that magic numbers are for, and with adjectives the names of lines. They are frozen:
every needle document and every record of lines depends on them.
"""

NOUNS = tuple(
    """
    acorn anchor angle animal apple apron arch arm army arrow artist attic aunt author baker
    ball band bank barn barrel basin basket beach beam bean bear beard bed bee bell belt bench
    berry bird blanket board boat body bone book boot bottle bottom bowl box branch brass bread
    breeze brick bride bridge broom brother brush bucket butter button cabin cake candle cannon
    canvas cap captain cargo carpet carriage cart castle cat cattle cave cellar chain chair
    chalk chapel cheese cherry chest chicken child church circle city clay clerk cliff cloak
    clock cloth cloud coach coal coast coat coffee coin collar colour cook copper corn corner
    cottage cotton couch cousin cow cradle creek crown cup curtain daisy dance daughter deck
    deer desk dinner dish doctor dog doll donkey door dragon drawer dream dress driver drum duck
    dust eagle ear earth edge egg elbow engine eye face fan farm farmer father feast feather
    fence fever field finger fire fish flag flame flock floor flour flower flute fly fog foot
    forest fork fountain fox frame friend frog frost fruit garden garment gate ghost gift girl
    glass glove goat gold goose grain grape grass guard guest guitar hair hall hammer hand
    harbour harp harvest hat hawk hay head heart hedge helmet herd hill hook horn horse hotel
    hour house hunter ice ink inn iron island ivory jacket jar jewel judge juice kettle key king
    kitchen kite kitten knee knife knight knot lace ladder lady lake lamb lamp lane lantern lawn
    lawyer leaf leather leg lemon letter library lily line linen lion lip lock log lord lunch
    maid map maple marble market marsh mast master match meadow meal meat melon merchant metal
    milk mill miner mirror money monkey month moon morning moss mother mountain mouse mouth mud
    music nail neck needle nephew nest net night nose nurse nut oak ocean office oil olive onion
    orange orchard organ oven owl ox page paint painter palace palm pan paper parcel parent park
    parlour path pea peach pear pearl pen pencil pepper piano picture pie pig pigeon pillow
    pilot pine pipe pirate plant plate plough plum pocket poem poet pond pony porch port post
    pot potato powder prince prison purse queen rabbit railway rain rat raven razor ribbon rice
    rider ring river road robe robin rock roof room root rope rose rug ruler sack saddle sail
    sailor saint salt sand saw scarf school sea seal seat seed servant shadow shed sheep shelf
    shell ship shirt shoe shop shore shoulder silk sister skirt sky sleeve smoke snail snake
    snow soap soldier son song soup spade spark sparrow spider spoon spring squirrel stable
    stage stair star station statue steam steel stem step stick stone storm stove stranger straw
    stream street string student sugar suit summer sun supper swan sword table tailor tale tea
    teacher tent thief thread throat throne thumb thunder ticket tiger timber toe tongue tooth
    torch tower town toy trader train tree trumpet trunk tunnel uncle valley vase vein velvet
    vessel village vine violin voice wagon waiter wall walnut watch water wave wax weaver wheat
    wheel whip whistle widow wife wind window wine wing wolf woman wood wool worker world worm
    wreath wrist yard year
    """.split()
)

ADJECTIVES = tuple(
    """
    able amber ancient angry autumn bare bitter black blank blue blunt bold brave brief
    bright brisk broad broken brown busy calm careful careless certain cheap cheerful chief
    chilly civil clean clear clever cloudy coarse cold common cool costly crimson crisp
    crooked cruel curious curly damp dark dear deep dense dim distant double dry dull dusty
    eager early eastern easy elder empty endless equal even evil faint fair faithful famous
    fancy fast feeble fierce fine firm flat fond foolish foreign former frail free frequent
    fresh friendly frosty full gentle giant glad gloomy golden gracious grand grateful grave
    great green grey grim happy hard harsh hasty heavy hidden high hollow holy honest hot
    huge humble hungry idle inner jolly keen kind large last late lawful lazy lean light
    little lively local lonely long loose loud lovely low loyal lucky mad main merry mild
    modern modest moist muddy mute narrow native near neat nervous new nimble noble noisy
    northern odd old open orderly outer pale patient peaceful perfect plain playful pleasant
    polite poor present pretty private proud public pure purple quaint quick quiet rapid
    rare raw ready recent red regular remote rich ripe rough round royal rude rustic sad
    safe scarce scarlet secret serious severe shabby shallow sharp short shy sick silent
    silver simple single slender slight slim slow sly small smart smooth sober soft solemn
    solid sore sour southern spare stale steady steep stern stiff still stormy stout strange
    strict strong sturdy subtle sudden sunny sure sweet swift tall tame tender tense thick
    thin thirsty tidy tight timid tiny tired tough true twin upper upright urgent useful
    vain vast violet vivid warm weak wealthy weary western wet white whole wicked wide wild
    wise witty wooden worthy wrong yellow young
    """.split()
)
