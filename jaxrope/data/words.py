"""The words that magic numbers are for. They are frozen: every needle document depends on them."""

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
